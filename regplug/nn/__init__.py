"""From tokens to FiLM pairs: select registers, read them, generate; backbones around them."""
