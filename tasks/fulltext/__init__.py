"""Full-text search in SQL: what people type, the tables of the index, and working with them."""
