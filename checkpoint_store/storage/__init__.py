"""The work of one transaction, in sync style on an `Executor`: reads, writes, deletion, copies, lists, sizes, locks."""
