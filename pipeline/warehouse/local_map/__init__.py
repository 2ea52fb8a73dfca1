"""Local maps: what people decided about codes and texts (`etl.local_map`), apart from the vocabulary's releases.

Here are its rows and their versions, the check of their targets against the active release, the copy of them in
`source_to_concept_map`, and the file that workers read. Files of people (Usagi's, spreadsheets) are read and written in
`pipeline.quality.unmapped`.
"""
