"""Looking at what an encoder learned."""
