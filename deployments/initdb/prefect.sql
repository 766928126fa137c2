-- PostgreSQL runs this when it starts for the first time: Prefect's server has a database beside the cache's.
CREATE DATABASE prefect OWNER speech;
