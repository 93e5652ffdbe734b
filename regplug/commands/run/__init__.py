"""``regplug run`` and ``regplug.BundleMapper``: a bundle over files of tokens."""
