-- Of a row of metadata: it is of the site.
starts_with(row.name, {prefix})
