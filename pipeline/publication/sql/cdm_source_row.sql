-- What the row for the instance says.
SELECT {columns} FROM {cdm}.cdm_source
