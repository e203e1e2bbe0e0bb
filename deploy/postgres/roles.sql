-- Roles for the tables' database. Run once, as a role that may create roles and databases:
--
--     psql -v owner_password="'...'" -v reader_password="'...'" -f roles.sql postgres
--
-- feature_pipeline   owns both schemas and everything in them; the pipeline connects as it.
-- feature_reader     reads what is in `features` and the provenance it joins to; people and
--                    services are made members of it: grant feature_reader to alice;
--
-- Neither is a superuser, may create roles or databases, or bypasses row security. The owner
-- creates nothing outside its two schemas. Dagster keeps its own storage in a database of its own.

create role feature_pipeline login password :owner_password
    nosuperuser nocreatedb nocreaterole noreplication;
-- Not "$user", which the pipeline's role has its bookkeeping under: what people make as that role,
-- without naming a schema, must not land where everything may be dropped.
alter role feature_pipeline set search_path = features, public;
create role feature_reader login password :reader_password
    nosuperuser nocreatedb nocreaterole noreplication;

-- Making what another role is to own needs membership in it; given back at the end.
grant feature_pipeline to current_user;

create database features encoding 'UTF8' template template0;
revoke all on database features from public;
grant connect, temporary on database features to feature_pipeline, feature_reader;

\connect features

revoke create on schema public from public;
create schema features authorization feature_pipeline;
create schema feature_pipeline authorization feature_pipeline;
grant usage on schema features, feature_pipeline to feature_reader;

-- What the pipeline will make: every view in `features`, and none of the generations behind them,
-- which come and go. A view reads with its owner's rights.
alter default privileges for role feature_pipeline in schema features
    grant select on tables to feature_reader;

-- Provenance: `batch` of a row joins to feature_pipeline.progress. It is made by the pipeline's
-- first run; the view's grant above covers features._outcomes. To let readers join progress too,
-- after that run:
--     grant select on feature_pipeline.tables, feature_pipeline.progress to feature_reader;

revoke feature_pipeline from current_user;
