"""Studies: what the tool finds out about the chapter's cases."""
