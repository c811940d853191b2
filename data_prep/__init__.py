"""Clips to arrays: storage, manifests, splits, and one talking clip to one row of a corpus.

Imports numpy, pyarrow, fsspec, the codec, face and audio libraries; never ray, stgs, cluster or jobs.
"""
