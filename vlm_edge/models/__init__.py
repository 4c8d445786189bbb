"""One folder per model family; see core.contracts.VlmFamily."""
