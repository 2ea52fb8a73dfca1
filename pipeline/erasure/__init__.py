"""Taking a person out of everything: whose a landed line is, the rows, the files, and the tombstones."""
