-- Tables that are filled without the write-ahead log.
TRUNCATE {tables}
