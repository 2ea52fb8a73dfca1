-- Of a row of a derived table: its person is in scope.
EXISTS (SELECT FROM pg_temp.{scope} AS scope WHERE scope.person_id = row.person_id)
