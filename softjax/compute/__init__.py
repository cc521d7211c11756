"""How the sums are computed: loops over tiles and blocks, their sizes, custom rules, rows, and squared distances."""
