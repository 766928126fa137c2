"""The same work as ours, done with other packages as their documentation says."""
