-- Whether an encounter ever was a part of another one.
SELECT EXISTS (SELECT FROM id_map WHERE cdm_table = 'visit_detail')
