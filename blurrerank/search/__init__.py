"""The best n of the gallery by cosine similarity: exact, given from elsewhere, or by FAISS."""
