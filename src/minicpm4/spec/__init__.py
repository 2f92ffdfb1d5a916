"""What the training of a head that drafts takes from the engine: answers of the model, and its states."""
