"""The small model, matcher and pictures that ship with OnlySeen, and the programs that made them."""
