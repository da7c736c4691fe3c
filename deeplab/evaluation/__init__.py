"""Scores of a network on a data set: mIoU, trimaps, submissions, the search for CRF settings."""
