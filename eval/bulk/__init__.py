"""The command `onlyseen-batch`: captions of whole data sets, each exactly once."""
