"""The OpenAI Images API: what a request becomes, and what its answer is. Field names are in the schemas."""
