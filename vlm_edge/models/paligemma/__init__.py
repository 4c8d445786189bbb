"""PaliGemma."""
