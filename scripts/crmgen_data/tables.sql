CREATE TABLE accounts(id INTEGER PRIMARY KEY, guid TEXT NOT NULL UNIQUE, parent_id INTEGER REFERENCES accounts(id),
  name TEXT NOT NULL, city TEXT, language TEXT NOT NULL, employees INTEGER, revenue NUMERIC, created_at TEXT NOT NULL);
CREATE TABLE contacts(id INTEGER PRIMARY KEY AUTOINCREMENT, guid TEXT NOT NULL,
  account_id INTEGER REFERENCES accounts(id), first_name TEXT, last_name TEXT NOT NULL, email TEXT, phone TEXT,
  city TEXT, birthday TEXT, score REAL, source TEXT, status TEXT NOT NULL, remarks TEXT, created_at TEXT NOT NULL,
  modified_at TEXT NOT NULL,
  full_name TEXT GENERATED ALWAYS AS (trim(coalesce(first_name, '') || ' ' || last_name)) VIRTUAL);
CREATE TABLE leads(id INTEGER PRIMARY KEY, name TEXT NOT NULL, company TEXT, email TEXT, rating INTEGER,
  contact_id INTEGER REFERENCES contacts(id) ON DELETE SET NULL, created_at TEXT NOT NULL);
CREATE TABLE opportunities(id INTEGER PRIMARY KEY, account_id INTEGER NOT NULL REFERENCES accounts(id),
  contact_id INTEGER REFERENCES contacts(id), title TEXT NOT NULL, stage TEXT NOT NULL, amount NUMERIC NOT NULL,
  currency TEXT NOT NULL, probability INTEGER NOT NULL CHECK (probability BETWEEN 0 AND 100), closed_at TEXT,
  modified_at TEXT NOT NULL, weighted REAL GENERATED ALWAYS AS (amount * probability / 100.0) STORED);
CREATE TABLE activities(id INTEGER PRIMARY KEY, contact_id INTEGER NOT NULL REFERENCES contacts(id), kind TEXT NOT NULL,
  subject TEXT, due_at TEXT NOT NULL, minutes INTEGER, done INTEGER NOT NULL);
CREATE TABLE emails(id INTEGER PRIMARY KEY, contact_id INTEGER NOT NULL REFERENCES contacts(id),
  message_id TEXT NOT NULL, subject TEXT, body TEXT NOT NULL, sent_at TEXT NOT NULL);
CREATE TABLE notes(id INTEGER PRIMARY KEY, contact_id INTEGER NOT NULL REFERENCES contacts(id), subject TEXT,
  body TEXT NOT NULL, created_at TEXT NOT NULL);
CREATE TABLE documents(id INTEGER PRIMARY KEY, account_id INTEGER NOT NULL REFERENCES accounts(id), name TEXT NOT NULL,
  mime TEXT NOT NULL, content BLOB, created_at TEXT NOT NULL);
CREATE TABLE tags(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE COLLATE NOCASE);
CREATE TABLE contact_tags(contact_id INTEGER NOT NULL REFERENCES contacts(id), tag_id INTEGER NOT NULL
  REFERENCES tags(id), tagged_at TEXT, PRIMARY KEY (contact_id, tag_id)) WITHOUT ROWID;
CREATE TABLE settings(name TEXT PRIMARY KEY, value ANY, weight REAL, raw BLOB, changes INTEGER NOT NULL) STRICT;
CREATE TABLE audit_trail(id INTEGER PRIMARY KEY, at TEXT NOT NULL, entity TEXT NOT NULL, entity_id INTEGER NOT NULL,
  old_value TEXT, new_value TEXT);
CREATE TABLE import_lines(source TEXT, line INTEGER, payload TEXT, imported_at TEXT);
CREATE VIRTUAL TABLE search USING fts5(title, body, tokenize = 'unicode61 remove_diacritics 2');
