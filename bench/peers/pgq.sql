-- pgq, the queue of the Skytools, with its trigger in C. What it captures stands in the partitions of pgq.event_1.
CREATE EXTENSION pgq;
SELECT pgq.create_queue('bench');
CREATE TRIGGER capture AFTER INSERT OR UPDATE OR DELETE ON sales FOR EACH ROW EXECUTE FUNCTION pgq.jsontriga('bench');
