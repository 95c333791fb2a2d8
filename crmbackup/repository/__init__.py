"""What is kept: packs of encrypted chunks, signed manifests, keys. Knows no SQL and no storage product.

The format, to the byte, is in docs/design.md; scripts/decrypt.py reads it without this package.
"""
