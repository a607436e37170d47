"""Copying of threads from any LangGraph checkpoint saver into PostgreSQL."""

from checkpoint_store.tools.transfer import TransferReport, acopy_threads, copy_threads

__all__ = ["TransferReport", "acopy_threads", "copy_threads"]
