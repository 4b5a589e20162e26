"""What acts: token ids and arrays, a model and an engine that samples from it. No text here."""
