"""Task runners of the batch: whatever computes the misses, the results are the same."""
