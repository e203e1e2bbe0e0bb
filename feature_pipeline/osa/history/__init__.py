"""Import rows of the server's tables whose hook output is gone, marked as reconstructed."""
