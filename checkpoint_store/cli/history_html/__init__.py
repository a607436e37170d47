"""A thread as one HTML file: its document, the page that shows it, and the writer of both."""
