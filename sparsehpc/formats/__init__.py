"""Storage formats: the contract, and one file per format."""
