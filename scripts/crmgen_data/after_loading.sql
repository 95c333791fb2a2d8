-- Carried out when all rows are in: faster, and the audit trail records only what follows.
CREATE INDEX contacts_by_name ON contacts(last_name, first_name);
CREATE INDEX contacts_by_email ON contacts(lower(email));
CREATE INDEX contacts_by_account ON contacts(account_id);
CREATE INDEX opportunities_open ON opportunities(stage, amount) WHERE closed_at IS NULL;
CREATE INDEX activities_by_contact ON activities(contact_id, due_at);
CREATE INDEX emails_by_contact ON emails(contact_id, sent_at);
CREATE UNIQUE INDEX emails_by_message ON emails(message_id);
CREATE INDEX notes_by_contact ON notes(contact_id);
CREATE INDEX contact_tags_by_tag ON contact_tags(tag_id);
CREATE VIEW open_pipeline AS SELECT a.name AS account, o.stage, count(*) AS deals, sum(o.weighted) AS weighted
  FROM opportunities o JOIN accounts a ON a.id = o.account_id WHERE o.closed_at IS NULL GROUP BY a.id, o.stage;
CREATE VIEW contact_overview AS SELECT c.id, c.full_name, c.status, a.name AS account,
  (SELECT count(*) FROM emails e WHERE e.contact_id = c.id) AS emails
  FROM contacts c LEFT JOIN accounts a ON a.id = c.account_id;
CREATE TRIGGER contacts_audit AFTER UPDATE ON contacts BEGIN
  INSERT INTO audit_trail(at, entity, entity_id, old_value, new_value) VALUES (NEW.modified_at, 'contact', OLD.id,
    json_object('status', OLD.status, 'email', OLD.email), json_object('status', NEW.status, 'email', NEW.email)); END;
CREATE TRIGGER opportunities_audit AFTER UPDATE ON opportunities BEGIN
  INSERT INTO audit_trail(at, entity, entity_id, old_value, new_value) VALUES (NEW.modified_at, 'opportunity', OLD.id,
    json_object('stage', OLD.stage, 'amount', OLD.amount), json_object('stage', NEW.stage, 'amount', NEW.amount)); END;
UPDATE contacts SET status = 'active', modified_at = date(modified_at, '+1 day') || ' 09:00:00' WHERE id % 11 = 0;
UPDATE opportunities SET stage = 'proposal', modified_at = date(modified_at, '+2 day') || ' 10:30:00' WHERE id % 9 = 0;
DELETE FROM import_lines WHERE rowid % 7 = 3 OR rowid BETWEEN 40 AND 60;
INSERT INTO search(rowid, title, body) SELECT id * 2, full_name, coalesce(city, '') || ' ' || coalesce(remarks, '')
  FROM contacts ORDER BY id;
INSERT INTO search(rowid, title, body) SELECT id * 2 + 1, subject, substr(body, 1, 600) FROM notes ORDER BY id;
ANALYZE;
