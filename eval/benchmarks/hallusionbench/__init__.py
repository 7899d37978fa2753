"""HallusionBench (arXiv:2310.14566): sets of yes/no questions about original and edited figures."""
