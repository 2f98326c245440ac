"""Changes that may mend a small fault: the inverses of mutations, with what each is a guess of."""
