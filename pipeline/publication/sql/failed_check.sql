-- A check that rolled a publication back, kept outside of its transaction.
INSERT INTO check_result (check_name, cdm_table, site, checked_at, severity, problems, detail)
VALUES (%(check)s, %(table)s, NULL, %(now)s, 'error', %(problems)s, 'a publication was rolled back')
