"""HTTP over one base model and all its skins, as OpenAI's clients know it, with a ledger line for every call."""
