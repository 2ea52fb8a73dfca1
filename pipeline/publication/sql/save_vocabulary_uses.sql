-- Answers of code sets that the site had not looked up before.
-- reads: new_use
INSERT INTO vocabulary_use (site, use_id, asked, answer, targets)
SELECT %(site)s, use_id, asked, answer, targets FROM pg_temp.new_use
ON CONFLICT (site, use_id) DO NOTHING
