"""From sources to batches: documents and conversations, tokens and trained spans, token store, pack plan, batch."""
