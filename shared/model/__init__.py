"""A model, judged before anything is loaded from it: its files, its config, its tokenizer, its head."""
