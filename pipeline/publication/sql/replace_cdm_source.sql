-- One row for the instance.
DELETE FROM {cdm}.cdm_source;
INSERT INTO {cdm}.cdm_source ({columns}) VALUES ({values});
