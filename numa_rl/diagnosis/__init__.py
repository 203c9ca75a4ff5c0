"""Why a NUMA run is slow: the chapter's tree and its gotchas, from measured figures."""
