"""How the sums are computed: loops over tiles and blocks, their sizes, the custom rules, and rows of dense logits."""
