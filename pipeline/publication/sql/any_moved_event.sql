-- Whether events of a replaced patient are with the survivor.
SELECT EXISTS (SELECT FROM reference WHERE role = 'person_id')
