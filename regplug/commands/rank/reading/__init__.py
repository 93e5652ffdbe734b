"""Reads samples for a ranking: a data set, through a backbone, into a file of tokens in the cache folder."""
