"""One folder per backend; see core.contracts.Backend."""
