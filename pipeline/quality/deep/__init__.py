"""`epic-omop verify --deep`: is the warehouse what a fresh load of its current lines would make of it?

The oracle for "incremental ≠ fresh". A sample of persons with all that they refer to, or everything, is loaded from
landing into scratch schemas, cut into other pieces; then all rows are compared, with links expressed by resource.

    model.py     what is asked for, and what is found
    scratch.py   the scratch schemas and home, and removing them, also what a killed run left
    sample.py    whose resources, and which others they depend on
    lines.py     current lines → exports in the scratch landing
    content.py   rows of a warehouse with links by identity
    compare.py   rows as they are and as they should be → differences
    run.py       the order of these

What is not a part of it: what a mapping should say (tests), lines and accounts (`pipeline.quality.verify`).
Nothing that is found holds a value of a row or the id of a FHIR resource.
"""
