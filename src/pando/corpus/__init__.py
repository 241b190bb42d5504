"""Documents to token shards: read, clean, deduplicate, decide, mix, tokenise; every document accounted for."""

from pando.corpus.config import Config, CorpusFileError, load_config

__all__ = ["Config", "CorpusFileError", "load_config"]
