-- Whether there is an order whose infusion is to be looked at.
-- reads: infusion_order
SELECT EXISTS (SELECT FROM pg_temp.infusion_order)
