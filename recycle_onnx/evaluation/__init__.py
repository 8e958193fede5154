"""What a module is worth and what it costs: perplexity, acceptance, and how far `alternate` departs from `full`."""
