-- Statistics of what was filled.
ANALYZE {tables}
