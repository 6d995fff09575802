"""Questions about the embedded collection in a newcomer's words, with the documents that answer.

Written for this project. A question names every document that answers it: numpy.sort and
jax.numpy.sort both, where it does not say which library. Names that an installation lacks are
passed over, so a question may be about something newer than the oldest supported Python.
"""

QUESTIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "how do I glue two folder names together",
        (
            "os.path.join",
            "pathlib.PurePath.joinpath",
        ),
    ),
    (
        "check whether a file is really there before opening it",
        (
            "os.path.exists",
            "pathlib.Path.exists",
            "os.path.isfile",
            "pathlib.Path.is_file",
        ),
    ),
    (
        "get just the last part of a path, the file name",
        (
            "os.path.basename",
            "pathlib.PurePath.name",
            "os.path.split",
        ),
    ),
    (
        "which folder does this file live in",
        (
            "os.path.dirname",
            "pathlib.PurePath.parent",
            "os.path.split",
        ),
    ),
    (
        "cut off the extension of a file name",
        (
            "pathlib.PurePath.stem",
            "pathlib.PurePath.with_suffix",
        ),
    ),
    ("change .txt to .md in a path", ("pathlib.PurePath.with_suffix",)),
    (
        "what kind of file is it, judging by the ending of its name",
        (
            "pathlib.PurePath.suffix",
            "pathlib.PurePath.suffixes",
            "mimetypes.guess_type",
        ),
    ),
    (
        "show everything inside a folder",
        (
            "os.listdir",
            "os.scandir",
            "pathlib.Path.iterdir",
        ),
    ),
    (
        "go through all subfolders and look at every file",
        (
            "os.walk",
            "pathlib.Path.walk",
            "pathlib.Path.rglob",
            "os.fwalk",
        ),
    ),
    (
        "find all files ending in .csv",
        (
            "glob.glob",
            "glob.iglob",
            "pathlib.Path.glob",
            "pathlib.Path.rglob",
        ),
    ),
    (
        "make a new folder together with its missing parents",
        (
            "os.makedirs",
            "pathlib.Path.mkdir",
        ),
    ),
    ("throw away a folder and all it contains", ("shutil.rmtree",)),
    (
        "delete one file from disk",
        (
            "os.remove",
            "os.unlink",
            "pathlib.Path.unlink",
        ),
    ),
    (
        "duplicate a file including its permissions and dates",
        (
            "shutil.copy2",
            "shutil.copy",
        ),
    ),
    ("duplicate an entire directory somewhere else", ("shutil.copytree",)),
    (
        "move a file to another place",
        (
            "shutil.move",
            "os.rename",
            "os.replace",
            "pathlib.Path.rename",
            "pathlib.Path.replace",
        ),
    ),
    (
        "how big is a file in bytes",
        (
            "os.path.getsize",
            "os.stat",
            "pathlib.Path.stat",
        ),
    ),
    (
        "when was this file last changed",
        (
            "os.path.getmtime",
            "os.stat",
            "pathlib.Path.stat",
        ),
    ),
    ("read the whole content of a text document at once", ("pathlib.Path.read_text",)),
    ("save a piece of text to disk in one line", ("pathlib.Path.write_text",)),
    (
        "scratch file that disappears by itself when closed",
        (
            "tempfile.NamedTemporaryFile",
            "tempfile.SpooledTemporaryFile",
        ),
    ),
    ("scratch folder that cleans itself up afterwards", ("tempfile.TemporaryDirectory",)),
    (
        "where am I right now, which directory",
        (
            "os.getcwd",
            "pathlib.Path.cwd",
        ),
    ),
    (
        "turn a relative path into a full one",
        (
            "os.path.abspath",
            "pathlib.Path.absolute",
            "pathlib.Path.resolve",
            "os.path.realpath",
        ),
    ),
    (
        "replace the tilde by the user's own directory",
        (
            "os.path.expanduser",
            "pathlib.Path.expanduser",
        ),
    ),
    (
        "do these two names point to the same thing on disk",
        (
            "os.path.samefile",
            "pathlib.Path.samefile",
        ),
    ),
    (
        "follow a shortcut to what it points at",
        (
            "os.readlink",
            "pathlib.Path.readlink",
            "os.path.realpath",
            "pathlib.Path.resolve",
        ),
    ),
    (
        "give other people the right to read my file",
        (
            "os.chmod",
            "pathlib.Path.chmod",
        ),
    ),
    (
        "how much room is left on the drive",
        (
            "shutil.disk_usage",
            "os.statvfs",
        ),
    ),
    ("is a program installed and where is its executable", ("shutil.which",)),
    (
        "fake a file that lives only in memory",
        (
            "io.StringIO",
            "io.BytesIO",
        ),
    ),
    (
        "jump back to the beginning of an open file",
        (
            "io.IOBase.seek",
            "io.TextIOWrapper.seek",
            "io.FileIO.seek",
            "io.BytesIO.seek",
            "io.StringIO.seek",
        ),
    ),
    ("compare two files to see if they are equal", ("filecmp.cmp",)),
    (
        "break a sentence into words",
        (
            "str.split",
            "re.split",
            "shlex.split",
        ),
    ),
    ("stick many words together with commas between", ("str.join",)),
    ("remove blanks at both ends of a line", ("str.strip",)),
    (
        "swap one word for another everywhere in some text",
        (
            "str.replace",
            "re.sub",
        ),
    ),
    (
        "does the text begin with a certain word",
        (
            "str.startswith",
            "re.match",
        ),
    ),
    ("make everything capital letters", ("str.upper",)),
    (
        "make everything small letters for comparing ignoring case",
        (
            "str.casefold",
            "str.lower",
        ),
    ),
    ("put zeros in front of a number so it has fixed width", ("str.zfill",)),
    ("pad a word with spaces so that it sits in the middle", ("str.center",)),
    (
        "position of the first occurrence of a letter in a word",
        (
            "str.find",
            "str.index",
        ),
    ),
    (
        "is this string made only of digits",
        (
            "str.isdigit",
            "str.isdecimal",
            "str.isnumeric",
        ),
    ),
    (
        "wrap a long paragraph at 70 columns",
        (
            "textwrap.wrap",
            "textwrap.fill",
            "textwrap.TextWrapper",
            "textwrap.TextWrapper.wrap",
            "textwrap.TextWrapper.fill",
        ),
    ),
    ("get rid of common leading spaces in a multi-line block", ("textwrap.dedent",)),
    (
        "all matches of a pattern in a text as a list",
        (
            "re.findall",
            "re.finditer",
            "re.Pattern.findall",
            "re.Pattern.finditer",
        ),
    ),
    (
        "first place where a pattern occurs anywhere",
        (
            "re.search",
            "re.Pattern.search",
        ),
    ),
    (
        "the pieces captured by the parentheses of a regular expression",
        (
            "re.Match.groups",
            "re.Match.group",
            "re.Match.groupdict",
        ),
    ),
    ("suggest the right spelling from a list of similar words", ("difflib.get_close_matches",)),
    (
        "show what changed between two versions of a text",
        (
            "difflib.unified_diff",
            "difflib.ndiff",
            "difflib.context_diff",
            "difflib.Differ",
            "difflib.HtmlDiff",
        ),
    ),
    (
        "strip accents off letters",
        (
            "unicodedata.normalize",
            "unicodedata.decomposition",
        ),
    ),
    ("official name of a weird character like the snowman", ("unicodedata.name",)),
    (
        "number of a character and back again",
        (
            "ord",
            "chr",
        ),
    ),
    (
        "turn text into bytes",
        (
            "str.encode",
            "codecs.encode",
        ),
    ),
    (
        "turn bytes from the network into readable text",
        (
            "bytes.decode",
            "bytearray.decode",
            "codecs.decode",
        ),
    ),
    (
        "fill in placeholders of a form letter",
        (
            "string.Template",
            "str.format",
            "str.format_map",
        ),
    ),
    ("make < and & harmless before showing them on a web page", ("html.escape",)),
    (
        "which date is it today",
        (
            "datetime.date.today",
            "datetime.datetime.now",
        ),
    ),
    (
        "parse a date that was typed by somebody",
        (
            "datetime.datetime.strptime",
            "datetime.date.fromisoformat",
            "datetime.datetime.fromisoformat",
            "time.strptime",
        ),
    ),
    (
        "print a moment nicely, like 3 May 2024",
        (
            "datetime.date.strftime",
            "time.strftime",
            "datetime.time.strftime",
        ),
    ),
    (
        "difference between two dates in days or seconds",
        (
            "datetime.timedelta",
            "datetime.timedelta.total_seconds",
        ),
    ),
    (
        "what day of the week is it",
        (
            "datetime.date.weekday",
            "datetime.date.isoweekday",
            "calendar.weekday",
        ),
    ),
    (
        "does february have 29 days in that year",
        (
            "calendar.isleap",
            "calendar.leapdays",
            "calendar.monthrange",
        ),
    ),
    (
        "number of seconds since 1970",
        (
            "time.time",
            "datetime.datetime.timestamp",
            "time.time_ns",
        ),
    ),
    (
        "wait for a few seconds before going on",
        (
            "time.sleep",
            "asyncio.sleep",
        ),
    ),
    (
        "measure how long a piece of code takes",
        (
            "time.perf_counter",
            "timeit.timeit",
            "timeit.Timer",
            "timeit.Timer.timeit",
            "timeit",
            "time.perf_counter_ns",
            "timeit.repeat",
        ),
    ),
    (
        "print a month as a little table of days",
        (
            "calendar.month",
            "calendar.prmonth",
        ),
    ),
    (
        "root of a number",
        (
            "math.sqrt",
            "math.isqrt",
            "cmath.sqrt",
        ),
    ),
    (
        "greatest number that divides both",
        (
            "math.gcd",
            "jax.numpy.gcd",
        ),
    ),
    (
        "smallest common multiple of some integers",
        (
            "math.lcm",
            "jax.numpy.lcm",
        ),
    ),
    (
        "product of all numbers from 1 to n",
        (
            "math.factorial",
            "scipy.special.factorial",
        ),
    ),
    (
        "how many ways to choose k things out of n",
        (
            "math.comb",
            "scipy.special.comb",
        ),
    ),
    (
        "cut off the decimals of a number",
        (
            "math.trunc",
            "math.floor",
            "jax.numpy.trunc",
            "jax.numpy.floor",
            "numpy.fix",
        ),
    ),
    (
        "next whole number above",
        (
            "math.ceil",
            "jax.numpy.ceil",
        ),
    ),
    (
        "are two floats nearly the same",
        (
            "math.isclose",
            "numpy.isclose",
            "numpy.allclose",
            "jax.numpy.isclose",
            "jax.numpy.allclose",
            "cmath.isclose",
        ),
    ),
    (
        "exact money arithmetic without rounding surprises",
        (
            "decimal.Decimal",
            "decimal",
        ),
    ),
    (
        "keep one third as a true ratio",
        (
            "fractions.Fraction",
            "fractions",
        ),
    ),
    (
        "angle in degrees from radians",
        (
            "math.degrees",
            "jax.numpy.rad2deg",
        ),
    ),
    (
        "length of the long side of a right triangle",
        (
            "math.hypot",
            "jax.numpy.hypot",
        ),
    ),
    ("add up floats without losing precision", ("math.fsum",)),
    (
        "write a number in binary as text",
        (
            "bin",
            "numpy.binary_repr",
        ),
    ),
    ("write an integer as hexadecimal text", ("hex",)),
    (
        "quotient and remainder in one go",
        (
            "divmod",
            "jax.numpy.divmod",
        ),
    ),
    (
        "distance between two points",
        (
            "math.dist",
            "scipy.spatial.distance.euclidean",
        ),
    ),
    (
        "count how often each word occurs",
        (
            "collections.Counter",
            "collections.Counter.most_common",
        ),
    ),
    ("the five most frequent items", ("collections.Counter.most_common",)),
    (
        "dictionary that makes up a value when the key is missing",
        (
            "collections.defaultdict",
            "dict.setdefault",
        ),
    ),
    ("queue where I can add and take at both ends quickly", ("collections.deque",)),
    (
        "tuple whose fields have names",
        (
            "collections.namedtuple",
            "typing.NamedTuple",
        ),
    ),
    ("look in several dictionaries as if they were one", ("collections.ChainMap",)),
    (
        "value for a key, or some fallback",
        (
            "dict.get",
            "dict.setdefault",
            "dict.pop",
        ),
    ),
    ("merge one dictionary into another", ("dict.update",)),
    ("add one thing to the end of a list", ("list.append",)),
    ("add all elements of another list", ("list.extend",)),
    ("put something into a list at a given place", ("list.insert",)),
    (
        "flip the order of a list",
        (
            "list.reverse",
            "reversed",
        ),
    ),
    ("put a list in order without changing the original", ("sorted",)),
    ("arrange a list in place by some criterion", ("list.sort",)),
    (
        "take out what two sets have in common",
        (
            "set.intersection",
            "numpy.intersect1d",
            "jax.numpy.intersect1d",
        ),
    ),
    (
        "elements that are in one set but not the other",
        (
            "set.difference",
            "numpy.setdiff1d",
            "jax.numpy.setdiff1d",
        ),
    ),
    (
        "always get the smallest element first, priority queue",
        (
            "heapq",
            "heapq.heappop",
            "heapq.heappush",
            "queue.PriorityQueue",
            "asyncio.PriorityQueue",
        ),
    ),
    ("ten largest values without sorting everything", ("heapq.nlargest",)),
    (
        "insert into a list that is already in order so it stays so",
        (
            "bisect.insort_right",
            "bisect.insort_left",
        ),
    ),
    (
        "where would a value go in an ordered list",
        (
            "bisect.bisect_right",
            "bisect.bisect_left",
            "numpy.searchsorted",
            "jax.numpy.searchsorted",
        ),
    ),
    ("copy a nested structure so nothing is shared", ("copy.deepcopy",)),
    ("walk over two lists side by side", ("zip",)),
    ("loop with an index counter", ("enumerate",)),
    (
        "run through several lists one after another as one",
        (
            "itertools.chain",
            "itertools.chain.from_iterable",
        ),
    ),
    ("every possible ordering of the items", ("itertools.permutations",)),
    ("every pair you can pick from a list, ignoring order", ("itertools.combinations",)),
    ("nested loops over two lists flattened into one", ("itertools.product",)),
    ("repeat a sequence over and over forever", ("itertools.cycle",)),
    (
        "running total of a list",
        (
            "itertools.accumulate",
            "numpy.cumsum",
            "jax.numpy.cumsum",
            "numpy.cumulative_sum",
            "jax.numpy.cumulative_sum",
        ),
    ),
    ("only the first few elements of a generator", ("itertools.islice",)),
    ("chop a list into groups of three", ("itertools.batched",)),
    ("neighbouring pairs of a sequence", ("itertools.pairwise",)),
    ("put consecutive items with the same key together", ("itertools.groupby",)),
    (
        "keep only elements that satisfy a test",
        (
            "filter",
            "itertools.compress",
        ),
    ),
    ("apply a function to each item", ("map",)),
    (
        "does at least one element hold true",
        (
            "any",
            "numpy.any",
            "jax.numpy.any",
            "numpy.ndarray.any",
        ),
    ),
    (
        "are they all true",
        (
            "all",
            "numpy.all",
            "jax.numpy.all",
            "numpy.ndarray.all",
        ),
    ),
    ("boil a list down to one value with a two-argument function", ("functools.reduce",)),
    (
        "remember results of a slow function so it is not called twice",
        (
            "functools.lru_cache",
            "functools.cache",
        ),
    ),
    ("fix some arguments of a function in advance", ("functools.partial",)),
    (
        "my decorator loses the name and documentation of the function",
        (
            "functools.wraps",
            "functools.update_wrapper",
        ),
    ),
    (
        "different implementation depending on the type of the argument",
        (
            "functools.singledispatch",
            "functools.singledispatchmethod",
        ),
    ),
    ("sort by the second item of each tuple", ("operator.itemgetter",)),
    ("class that is only a bag of fields, with little typing", ("dataclasses.dataclass",)),
    (
        "force subclasses to implement a method",
        (
            "abc.abstractmethod",
            "abc.ABC",
            "abc.ABCMeta",
        ),
    ),
    (
        "set of named constants",
        (
            "enum.Enum",
            "enum.IntEnum",
            "enum.StrEnum",
        ),
    ),
    (
        "method that belongs to the class rather than to an object",
        (
            "classmethod",
            "staticmethod",
        ),
    ),
    ("is this object of a certain type", ("isinstance",)),
    ("read an attribute whose name I have in a string", ("getattr",)),
    ("does the object have such a field", ("hasattr",)),
    ("write my own with-block using a generator", ("contextlib.contextmanager",)),
    ("ignore a particular error silently", ("contextlib.suppress",)),
    (
        "close several things reliably when a block ends",
        (
            "contextlib.ExitStack",
            "contextlib.closing",
        ),
    ),
    ("catch what a function prints", ("contextlib.redirect_stdout",)),
    (
        "run another program and get its output",
        (
            "subprocess.run",
            "subprocess.check_output",
            "subprocess.getoutput",
            "subprocess.Popen",
        ),
    ),
    (
        "start a background task in its own thread",
        (
            "threading.Thread",
            "threading.Thread.start",
            "asyncio.to_thread",
        ),
    ),
    (
        "stop two threads from touching the same data simultaneously",
        (
            "threading.Lock",
            "threading.RLock",
        ),
    ),
    (
        "let one thread tell others that something has happened",
        (
            "threading.Event",
            "threading.Condition",
            "threading.Event.set",
        ),
    ),
    (
        "do something later, after a delay, in the background",
        (
            "threading.Timer",
            "sched",
            "sched.scheduler",
        ),
    ),
    ("wait until a thread is done", ("threading.Thread.join",)),
    (
        "use all processor cores for a loop",
        (
            "multiprocessing.Pool",
            "multiprocessing.pool.Pool.map",
            "concurrent.futures.ProcessPoolExecutor",
            "multiprocessing.pool.Pool",
        ),
    ),
    (
        "how many processors has this machine",
        (
            "os.cpu_count",
            "multiprocessing.cpu_count",
        ),
    ),
    ("pool of workers that share jobs between threads", ("concurrent.futures.ThreadPoolExecutor",)),
    (
        "hand items safely from one thread to another",
        (
            "queue.Queue",
            "queue.SimpleQueue",
        ),
    ),
    (
        "pass objects between processes",
        (
            "multiprocessing.Queue",
            "multiprocessing.Pipe",
            "multiprocessing.SimpleQueue",
        ),
    ),
    (
        "await several coroutines together",
        (
            "asyncio.gather",
            "asyncio.TaskGroup",
            "asyncio.wait",
        ),
    ),
    (
        "give up on an async operation if it takes too long",
        (
            "asyncio.wait_for",
            "asyncio.timeout",
            "asyncio.timeout_at",
        ),
    ),
    (
        "entry point to start an async program",
        (
            "asyncio.run",
            "asyncio.Runner",
        ),
    ),
    (
        "react when the user presses ctrl-c or the process is killed",
        (
            "signal.signal",
            "KeyboardInterrupt",
        ),
    ),
    (
        "end the program with an exit status",
        (
            "sys.exit",
            "SystemExit",
        ),
    ),
    ("do something just before the interpreter quits", ("atexit.register",)),
    ("value of an environment variable", ("os.getenv",)),
    ("process number of my program", ("os.getpid",)),
    (
        "download a web page",
        (
            "urllib.request.urlopen",
            "urllib.request.urlretrieve",
        ),
    ),
    (
        "take a web address apart into host, path and so on",
        (
            "urllib.parse.urlparse",
            "urllib.parse.urlsplit",
        ),
    ),
    (
        "escape special characters for use in a link",
        (
            "urllib.parse.quote",
            "urllib.parse.quote_plus",
            "urllib.parse.urlencode",
        ),
    ),
    (
        "tiny web server for the current folder",
        (
            "http.server",
            "http.server.SimpleHTTPRequestHandler",
        ),
    ),
    (
        "send an e-mail from a script",
        (
            "smtplib.SMTP",
            "smtplib.SMTP.sendmail",
            "smtplib.SMTP.send_message",
            "smtplib",
        ),
    ),
    (
        "open a TCP connection to another computer",
        (
            "socket.create_connection",
            "socket.socket.connect",
            "asyncio.open_connection",
        ),
    ),
    (
        "is this IP address inside a network range",
        (
            "ipaddress.ip_network",
            "ipaddress.ip_address",
        ),
    ),
    (
        "my own computer's name",
        (
            "socket.gethostname",
            "platform.node",
        ),
    ),
    (
        "show a page in the user's browser",
        (
            "webbrowser.open",
            "webbrowser.open_new",
            "webbrowser.open_new_tab",
            "webbrowser",
        ),
    ),
    (
        "squeeze bytes so they need less space",
        (
            "zlib.compress",
            "gzip.compress",
            "bz2.compress",
            "lzma.compress",
        ),
    ),
    (
        "open a .gz file",
        (
            "gzip.open",
            "gzip.GzipFile",
        ),
    ),
    (
        "pack some files into one zip",
        (
            "zipfile.ZipFile",
            "shutil.make_archive",
            "zipfile.ZipFile.write",
            "zipfile",
        ),
    ),
    (
        "unpack an archive that I downloaded",
        (
            "shutil.unpack_archive",
            "zipfile.ZipFile.extractall",
            "tarfile.TarFile.extractall",
        ),
    ),
    (
        "turn a dictionary into a JSON string",
        (
            "json.dumps",
            "json.JSONEncoder",
            "json.JSONEncoder.encode",
        ),
    ),
    (
        "load settings stored as JSON",
        (
            "json.load",
            "json.loads",
        ),
    ),
    ("read a spreadsheet exported with commas", ("csv.reader",)),
    ("write rows of a table to a comma separated file", ("csv.writer",)),
    (
        "parse an ini file with sections",
        (
            "configparser",
            "configparser.ConfigParser",
            "configparser.RawConfigParser",
        ),
    ),
    (
        "read settings from pyproject.toml",
        (
            "tomllib.load",
            "tomllib.loads",
        ),
    ),
    (
        "store python objects on disk and get them back later",
        (
            "pickle.dump",
            "pickle.load",
            "shelve",
            "pickle",
            "pickle.dumps",
        ),
    ),
    (
        "small database without a server",
        (
            "sqlite3",
            "sqlite3.connect",
        ),
    ),
    ("run an SQL statement many times with different values", ("sqlite3.Connection.executemany",)),
    (
        "convert binary data to printable ASCII for transport",
        (
            "base64.b64encode",
            "base64.encodebytes",
            "base64.standard_b64encode",
            "base64.urlsafe_b64encode",
            "binascii.b2a_base64",
            "base64.b85encode",
            "base64.a85encode",
        ),
    ),
    (
        "unpack binary C structs",
        (
            "struct.unpack",
            "struct.unpack_from",
            "struct.Struct.unpack",
            "struct.iter_unpack",
        ),
    ),
    (
        "read XML into a tree",
        (
            "xml.etree.ElementTree.parse",
            "xml.etree.ElementTree.XML",
            "xml.etree.ElementTree",
            "xml.etree.ElementTree.ElementTree.parse",
        ),
    ),
    (
        "checksum of a file to see if it is damaged",
        (
            "hashlib.file_digest",
            "zlib.crc32",
            "hashlib",
            "zlib.adler32",
        ),
    ),
    (
        "unguessable password or token",
        (
            "secrets.token_hex",
            "secrets.token_urlsafe",
            "secrets.token_bytes",
            "secrets",
        ),
    ),
    (
        "make a globally unique identifier",
        (
            "uuid.uuid4",
            "uuid.uuid1",
            "uuid",
        ),
    ),
    (
        "ask for a password without showing it on screen",
        (
            "getpass.getpass",
            "getpass",
        ),
    ),
    (
        "check tampering of a message with a secret key",
        (
            "hmac.new",
            "hmac.digest",
            "hmac.HMAC",
            "hmac",
        ),
    ),
    (
        "command line options with help text",
        (
            "argparse",
            "argparse.ArgumentParser",
            "argparse.ArgumentParser.add_argument",
            "getopt",
        ),
    ),
    (
        "write messages to a log file with a level",
        (
            "logging.basicConfig",
            "logging",
            "logging.FileHandler",
        ),
    ),
    (
        "start a fresh log file when the old one gets too large",
        ("logging.handlers.RotatingFileHandler",),
    ),
    (
        "print the full error with the call stack",
        (
            "traceback.print_exc",
            "traceback.format_exc",
            "traceback.print_exception",
            "logging.exception",
        ),
    ),
    (
        "stop here and look at variables step by step",
        (
            "breakpoint",
            "pdb.set_trace",
            "pdb",
        ),
    ),
    (
        "which lines of my code are slow",
        (
            "cProfile.Profile",
            "pstats.Stats",
        ),
    ),
    (
        "find where memory is being used up",
        (
            "tracemalloc.start",
            "tracemalloc.take_snapshot",
        ),
    ),
    ("check that my function raises the right error", ("unittest.TestCase.assertRaises",)),
    (
        "substitute an object by a dummy during a test",
        (
            "unittest.mock.patch",
            "unittest.mock.Mock",
            "unittest.mock.MagicMock",
        ),
    ),
    (
        "run the examples written in docstrings",
        (
            "doctest.testmod",
            "doctest.testfile",
            "doctest",
        ),
    ),
    (
        "show a nested dictionary in a readable layout",
        (
            "pprint.pprint",
            "pprint.pformat",
            "pprint.pp",
        ),
    ),
    (
        "tell users that a function will go away soon",
        (
            "warnings.warn",
            "DeprecationWarning",
        ),
    ),
    (
        "parameters that a function accepts, at runtime",
        (
            "inspect.signature",
            "inspect.getfullargspec",
        ),
    ),
    (
        "source text of a function",
        (
            "inspect.getsource",
            "inspect.getsourcelines",
        ),
    ),
    ("safely evaluate a string containing a python literal", ("ast.literal_eval",)),
    ("annotation for something that may be any of several types", ("typing.Union",)),
    ("mark a variable that may also be None", ("typing.Optional",)),
    ("describe an interface by its methods, duck typing", ("typing.Protocol",)),
    ("dictionary with known keys and types for the checker", ("typing.TypedDict",)),
    (
        "which operating system is this",
        (
            "platform.system",
            "platform.platform",
            "os.uname",
            "platform.uname",
        ),
    ),
    (
        "version of the running interpreter",
        (
            "platform.python_version",
            "platform.python_version_tuple",
        ),
    ),
    ("how much memory does an object take", ("sys.getsizeof",)),
    (
        "order tasks so that dependencies come first",
        (
            "graphlib.TopologicalSorter",
            "graphlib.TopologicalSorter.static_order",
        ),
    ),
    (
        "pick one element of a list by chance",
        (
            "random.choice",
            "random.choices",
        ),
    ),
    ("mix the cards of a deck", ("random.shuffle",)),
    ("draw several different items by lot", ("random.sample",)),
    (
        "simulate throwing a die",
        (
            "random.randint",
            "random.randrange",
        ),
    ),
    ("get the same random numbers every time", ("random.seed",)),
    (
        "random numbers following a bell curve",
        (
            "random.gauss",
            "random.normalvariate",
            "scipy.stats.norm",
        ),
    ),
    (
        "average of a list of numbers",
        (
            "statistics.mean",
            "statistics.fmean",
            "numpy.mean",
            "jax.numpy.mean",
            "numpy.ndarray.mean",
            "numpy.average",
            "jax.numpy.average",
        ),
    ),
    (
        "middle value of the data",
        (
            "statistics.median",
            "numpy.median",
            "jax.numpy.median",
        ),
    ),
    (
        "how spread out are the measurements",
        (
            "statistics.stdev",
            "statistics.pstdev",
            "numpy.std",
            "jax.numpy.std",
            "statistics.variance",
            "statistics.pvariance",
            "numpy.var",
            "jax.numpy.var",
        ),
    ),
    (
        "most common value in a data set",
        (
            "statistics.mode",
            "statistics.multimode",
            "scipy.stats.mode",
            "collections.Counter.most_common",
        ),
    ),
    (
        "value below which 90 percent of the data lie",
        (
            "numpy.percentile",
            "jax.numpy.percentile",
            "numpy.quantile",
            "jax.numpy.quantile",
            "statistics.quantiles",
            "scipy.stats.scoreatpercentile",
            "scipy.stats.quantile",
        ),
    ),
    (
        "fit a straight line through points",
        (
            "statistics.linear_regression",
            "scipy.stats.linregress",
            "numpy.polyfit",
            "jax.numpy.polyfit",
            "scipy.stats.siegelslopes",
            "scipy.stats.theilslopes",
            "numpy.polynomial.polynomial.polyfit",
        ),
    ),
    (
        "average ignoring missing values",
        (
            "numpy.nanmean",
            "jax.numpy.nanmean",
        ),
    ),
    (
        "matrix full of zeros",
        (
            "numpy.zeros",
            "jax.numpy.zeros",
        ),
    ),
    (
        "array of ones with the shape of another",
        (
            "numpy.ones_like",
            "jax.numpy.ones_like",
        ),
    ),
    (
        "matrix with ones on the diagonal",
        (
            "numpy.eye",
            "numpy.identity",
            "jax.numpy.eye",
            "jax.numpy.identity",
            "scipy.sparse.eye_array",
            "scipy.sparse.eye",
            "scipy.sparse.identity",
        ),
    ),
    (
        "evenly spaced numbers between two limits",
        (
            "numpy.linspace",
            "jax.numpy.linspace",
        ),
    ),
    (
        "numbers from start to stop with a fixed step, as array",
        (
            "numpy.arange",
            "jax.numpy.arange",
        ),
    ),
    (
        "grid of x and y coordinates for plotting a surface",
        (
            "numpy.meshgrid",
            "jax.numpy.meshgrid",
            "numpy.mgrid",
        ),
    ),
    (
        "make an array out of a nested list",
        (
            "numpy.array",
            "numpy.asarray",
            "jax.numpy.array",
            "jax.numpy.asarray",
        ),
    ),
    (
        "change the dimensions of an array without changing the data",
        (
            "numpy.reshape",
            "jax.numpy.reshape",
            "numpy.ndarray.reshape",
        ),
    ),
    (
        "glue arrays end to end",
        (
            "numpy.concatenate",
            "jax.numpy.concatenate",
        ),
    ),
    (
        "pile arrays up along a brand new axis",
        (
            "numpy.stack",
            "jax.numpy.stack",
        ),
    ),
    (
        "put arrays on top of each other row by row",
        (
            "numpy.vstack",
            "jax.numpy.vstack",
        ),
    ),
    (
        "cut an array into equal parts",
        (
            "numpy.split",
            "jax.numpy.split",
            "numpy.array_split",
            "jax.numpy.array_split",
        ),
    ),
    (
        "exchange rows and columns",
        (
            "numpy.transpose",
            "jax.numpy.transpose",
            "numpy.ndarray.T",
            "numpy.ndarray.transpose",
            "numpy.matrix_transpose",
            "jax.numpy.matrix_transpose",
        ),
    ),
    (
        "turn a matrix into one long vector",
        (
            "numpy.ravel",
            "jax.numpy.ravel",
            "numpy.ndarray.flatten",
            "numpy.ndarray.ravel",
        ),
    ),
    (
        "drop axes of length one",
        (
            "numpy.squeeze",
            "jax.numpy.squeeze",
            "numpy.ndarray.squeeze",
        ),
    ),
    (
        "add an axis of length one",
        (
            "numpy.expand_dims",
            "jax.numpy.expand_dims",
        ),
    ),
    (
        "repeat an array like tiles on a floor",
        (
            "numpy.tile",
            "jax.numpy.tile",
        ),
    ),
    (
        "surround an array with a border of zeros",
        (
            "numpy.pad",
            "jax.numpy.pad",
        ),
    ),
    (
        "shift elements around cyclically",
        (
            "numpy.roll",
            "jax.numpy.roll",
        ),
    ),
    (
        "mirror an array left to right",
        (
            "numpy.fliplr",
            "jax.numpy.fliplr",
            "numpy.flip",
            "jax.numpy.flip",
        ),
    ),
    (
        "turn an image by 90 degrees",
        (
            "numpy.rot90",
            "jax.numpy.rot90",
        ),
    ),
    (
        "choose values from one of two arrays depending on a mask",
        (
            "numpy.where",
            "jax.numpy.where",
        ),
    ),
    (
        "position of the biggest element",
        (
            "numpy.argmax",
            "jax.numpy.argmax",
            "numpy.ndarray.argmax",
        ),
    ),
    (
        "indices that would put an array in order",
        (
            "numpy.argsort",
            "jax.numpy.argsort",
            "numpy.ndarray.argsort",
        ),
    ),
    (
        "arrange array values from small to large",
        (
            "numpy.sort",
            "jax.numpy.sort",
            "numpy.ndarray.sort",
        ),
    ),
    (
        "distinct values in an array",
        (
            "numpy.unique",
            "jax.numpy.unique",
            "numpy.unique_values",
            "jax.numpy.unique_values",
        ),
    ),
    (
        "where are the nonzero entries",
        (
            "numpy.nonzero",
            "jax.numpy.nonzero",
            "numpy.argwhere",
            "jax.numpy.argwhere",
            "numpy.flatnonzero",
            "jax.numpy.flatnonzero",
        ),
    ),
    (
        "limit values to a range",
        (
            "numpy.clip",
            "jax.numpy.clip",
            "numpy.ndarray.clip",
        ),
    ),
    ("the k largest entries with their indices", ("jax.numpy.top_k",)),
    (
        "is each element of one array contained in another",
        (
            "numpy.isin",
            "jax.numpy.isin",
        ),
    ),
    (
        "differences between successive elements",
        (
            "numpy.diff",
            "jax.numpy.diff",
            "numpy.ediff1d",
            "jax.numpy.ediff1d",
        ),
    ),
    (
        "how many values fall into each bin",
        (
            "numpy.histogram",
            "jax.numpy.histogram",
            "numpy.bincount",
            "jax.numpy.bincount",
        ),
    ),
    (
        "pick entries along an axis by an index array",
        (
            "numpy.take",
            "jax.numpy.take",
            "numpy.take_along_axis",
            "jax.numpy.take_along_axis",
        ),
    ),
    (
        "replace nan by zero",
        (
            "numpy.nan_to_num",
            "jax.numpy.nan_to_num",
        ),
    ),
    (
        "make a plain python function work on whole arrays",
        (
            "numpy.vectorize",
            "jax.numpy.vectorize",
            "numpy.frompyfunc",
        ),
    ),
    (
        "sums of products with index notation",
        (
            "numpy.einsum",
            "jax.numpy.einsum",
        ),
    ),
    (
        "save an array in a file and get it again",
        (
            "numpy.save",
            "numpy.load",
            "numpy.savez",
            "jax.numpy.load",
            "numpy.savez_compressed",
        ),
    ),
    (
        "numbers from a text file into an array",
        (
            "numpy.loadtxt",
            "numpy.genfromtxt",
        ),
    ),
    (
        "stretch a small array to match a larger shape without copying",
        (
            "numpy.broadcast_to",
            "jax.numpy.broadcast_to",
        ),
    ),
    (
        "solve a system of linear equations",
        (
            "numpy.linalg.solve",
            "jax.numpy.linalg.solve",
            "scipy.linalg.solve",
        ),
    ),
    (
        "inverse of a matrix",
        (
            "numpy.linalg.inv",
            "jax.numpy.linalg.inv",
            "scipy.linalg.inv",
        ),
    ),
    (
        "eigenvalues of a symmetric matrix",
        (
            "numpy.linalg.eigh",
            "numpy.linalg.eigvalsh",
            "jax.numpy.linalg.eigh",
            "jax.numpy.linalg.eigvalsh",
            "scipy.linalg.eigh",
            "scipy.linalg.eigvalsh",
        ),
    ),
    (
        "length of a vector",
        (
            "numpy.linalg.norm",
            "jax.numpy.linalg.norm",
            "scipy.linalg.norm",
            "numpy.linalg.vector_norm",
            "jax.numpy.linalg.vector_norm",
        ),
    ),
    (
        "SVD factorization of a matrix",
        (
            "numpy.linalg.svd",
            "jax.numpy.linalg.svd",
            "scipy.linalg.svd",
        ),
    ),
    (
        "is my matrix singular, what is its determinant",
        (
            "numpy.linalg.det",
            "jax.numpy.linalg.det",
            "scipy.linalg.det",
            "numpy.linalg.slogdet",
            "jax.numpy.linalg.slogdet",
        ),
    ),
    (
        "best approximate solution when there are more equations than unknowns",
        (
            "numpy.linalg.lstsq",
            "jax.numpy.linalg.lstsq",
            "scipy.linalg.lstsq",
        ),
    ),
    (
        "triangular factor of a positive definite matrix",
        (
            "numpy.linalg.cholesky",
            "jax.numpy.linalg.cholesky",
            "scipy.linalg.cholesky",
            "scipy.linalg.cho_factor",
        ),
    ),
    (
        "multiply two matrices together",
        (
            "jax.numpy.matmul",
            "numpy.dot",
            "jax.numpy.dot",
            "numpy.linalg.matmul",
            "jax.numpy.linalg.matmul",
        ),
    ),
    (
        "matrix to the power of e",
        (
            "scipy.linalg.expm",
            "scipy.sparse.linalg.expm",
        ),
    ),
    (
        "which frequencies are in my signal",
        (
            "numpy.fft.fft",
            "jax.numpy.fft.fft",
            "scipy.fft.fft",
            "numpy.fft.rfft",
            "jax.numpy.fft.rfft",
            "scipy.fft.rfft",
            "scipy.signal.periodogram",
            "scipy.signal.welch",
        ),
    ),
    (
        "get back from frequencies to the time domain",
        (
            "numpy.fft.ifft",
            "jax.numpy.fft.ifft",
            "scipy.fft.ifft",
            "numpy.fft.irfft",
            "jax.numpy.fft.irfft",
            "scipy.fft.irfft",
        ),
    ),
    (
        "move the zero frequency to the centre of the spectrum",
        (
            "numpy.fft.fftshift",
            "jax.numpy.fft.fftshift",
            "scipy.fft.fftshift",
        ),
    ),
    (
        "cosine transform as used in jpeg",
        (
            "scipy.fft.dct",
            "scipy.fft.dctn",
        ),
    ),
    (
        "estimate values between measured points",
        (
            "numpy.interp",
            "jax.numpy.interp",
            "scipy.interpolate.interp1d",
            "scipy.interpolate.CubicSpline",
            "scipy.interpolate.make_interp_spline",
        ),
    ),
    (
        "smooth curve through points that never overshoots",
        (
            "scipy.interpolate.PchipInterpolator",
            "scipy.interpolate.pchip_interpolate",
        ),
    ),
    ("values at scattered places put on a regular mesh", ("scipy.interpolate.griddata",)),
    (
        "find the lowest point of a function of several variables",
        (
            "scipy.optimize.minimize",
            "scipy.optimize.fmin",
            "scipy.optimize.fmin_bfgs",
        ),
    ),
    (
        "adjust the parameters of a formula to my data",
        (
            "scipy.optimize.curve_fit",
            "scipy.optimize.least_squares",
            "scipy.optimize.leastsq",
        ),
    ),
    (
        "where does a function cross zero",
        (
            "scipy.optimize.root_scalar",
            "scipy.optimize.brentq",
            "scipy.optimize.bisect",
            "scipy.optimize.newton",
            "scipy.optimize.root",
            "scipy.optimize.fsolve",
            "scipy.optimize.ridder",
            "scipy.optimize.toms748",
            "scipy.optimize.brenth",
        ),
    ),
    (
        "global optimum of a bumpy function",
        (
            "scipy.optimize.differential_evolution",
            "scipy.optimize.dual_annealing",
            "scipy.optimize.basinhopping",
            "scipy.optimize.shgo",
            "scipy.optimize.direct",
            "scipy.optimize.brute",
        ),
    ),
    (
        "linear programme with constraints",
        (
            "scipy.optimize.linprog",
            "scipy.optimize.milp",
        ),
    ),
    (
        "area under a curve given by a formula",
        (
            "scipy.integrate.quad",
            "scipy.integrate.fixed_quad",
            "scipy.integrate.tanhsinh",
        ),
    ),
    (
        "area under sampled data points",
        (
            "numpy.trapezoid",
            "jax.numpy.trapezoid",
            "scipy.integrate.trapezoid",
            "scipy.integrate.simpson",
            "scipy.integrate.romb",
        ),
    ),
    (
        "simulate a differential equation over time",
        (
            "scipy.integrate.solve_ivp",
            "scipy.integrate.odeint",
            "scipy.integrate.ode",
        ),
    ),
    (
        "matrix with mostly empty entries that saves memory",
        (
            "scipy.sparse.csr_array",
            "scipy.sparse.csr_matrix",
            "scipy.sparse.csc_array",
            "scipy.sparse.coo_array",
            "scipy.sparse.csc_matrix",
            "scipy.sparse.coo_matrix",
            "scipy.sparse",
        ),
    ),
    (
        "convert a mostly empty matrix to an ordinary one",
        (
            "scipy.sparse.csr_array.toarray",
            "scipy.sparse.csr_array.todense",
        ),
    ),
    (
        "few largest eigenvalues of a huge matrix with mostly zeros",
        (
            "scipy.sparse.linalg.eigsh",
            "scipy.sparse.linalg.eigs",
            "scipy.sparse.linalg.lobpcg",
        ),
    ),
    (
        "are the means of two groups really different",
        (
            "scipy.stats.ttest_ind",
            "scipy.stats.ttest_ind_from_stats",
        ),
    ),
    (
        "do two quantities go up and down together",
        (
            "numpy.corrcoef",
            "jax.numpy.corrcoef",
            "scipy.stats.pearsonr",
            "scipy.stats.spearmanr",
            "statistics.correlation",
        ),
    ),
    (
        "is my sample bell shaped",
        (
            "scipy.stats.shapiro",
            "scipy.stats.normaltest",
            "scipy.stats.anderson",
            "scipy.stats.jarque_bera",
        ),
    ),
    ("counts of rare events per hour", ("scipy.stats.poisson",)),
    ("confidence interval by resampling my data", ("scipy.stats.bootstrap",)),
    ("estimate a smooth density from samples", ("scipy.stats.gaussian_kde",)),
    (
        "standardize data to zero mean and unit variance",
        (
            "scipy.stats.zscore",
            "scipy.cluster.vq.whiten",
        ),
    ),
    (
        "compare three or more groups at once",
        (
            "scipy.stats.f_oneway",
            "scipy.stats.kruskal",
            "scipy.stats.tukey_hsd",
        ),
    ),
    (
        "are two categorical variables independent",
        (
            "scipy.stats.chi2_contingency",
            "scipy.stats.fisher_exact",
        ),
    ),
    (
        "remove high frequency noise from a recording",
        (
            "scipy.signal.butter",
            "scipy.signal.filtfilt",
            "scipy.signal.sosfiltfilt",
            "scipy.signal.sosfilt",
            "scipy.signal.lfilter",
            "scipy.signal.savgol_filter",
        ),
    ),
    (
        "find the bumps in a curve",
        (
            "scipy.signal.find_peaks",
            "scipy.signal.find_peaks_cwt",
            "scipy.signal.argrelmax",
            "scipy.signal.argrelextrema",
        ),
    ),
    (
        "slide one signal over another and add the products",
        (
            "numpy.convolve",
            "jax.numpy.convolve",
            "scipy.signal.convolve",
            "scipy.signal.fftconvolve",
            "numpy.correlate",
            "jax.numpy.correlate",
            "scipy.signal.correlate",
            "scipy.signal.oaconvolve",
        ),
    ),
    (
        "change the sampling rate of audio",
        (
            "scipy.signal.resample",
            "scipy.signal.resample_poly",
            "scipy.signal.decimate",
        ),
    ),
    (
        "how does the spectrum change over time",
        (
            "scipy.signal.spectrogram",
            "scipy.signal.stft",
            "scipy.signal.ShortTimeFFT",
        ),
    ),
    (
        "blur an image a bit",
        (
            "scipy.ndimage.gaussian_filter",
            "scipy.ndimage.uniform_filter",
        ),
    ),
    ("number the separate blobs in a picture", ("scipy.ndimage.label",)),
    (
        "detect edges in an image",
        (
            "scipy.ndimage.sobel",
            "scipy.ndimage.prewitt",
            "scipy.ndimage.laplace",
            "scipy.ndimage.gaussian_gradient_magnitude",
        ),
    ),
    (
        "closest neighbours of a point among many",
        (
            "scipy.spatial.KDTree",
            "scipy.spatial.KDTree.query",
        ),
    ),
    (
        "distances between all pairs of rows",
        (
            "scipy.spatial.distance.pdist",
            "scipy.spatial.distance.cdist",
            "scipy.spatial.distance_matrix",
        ),
    ),
    (
        "group points into k clusters",
        (
            "scipy.cluster.vq.kmeans",
            "scipy.cluster.vq.kmeans2",
        ),
    ),
    (
        "tree of clusters, merged step by step",
        (
            "scipy.cluster.hierarchy.linkage",
            "scipy.cluster.hierarchy.dendrogram",
        ),
    ),
    (
        "rotate a vector in three dimensions",
        (
            "scipy.spatial.transform.Rotation",
            "scipy.spatial.transform.Rotation.apply",
        ),
    ),
    ("turn scores into probabilities that sum to one", ("scipy.special.softmax",)),
    (
        "log of a sum of exponentials, numerically stable",
        (
            "scipy.special.logsumexp",
            "jax.numpy.logaddexp",
        ),
    ),
    (
        "zeros of a polynomial from its coefficients",
        (
            "numpy.roots",
            "jax.numpy.roots",
            "numpy.polynomial.polynomial.polyroots",
        ),
    ),
    ("read a matlab file", ("scipy.io.loadmat",)),
    (
        "slope of data at each point",
        (
            "numpy.gradient",
            "jax.numpy.gradient",
        ),
    ),
    (
        "treat one array as angle and remove jumps of full turns",
        (
            "numpy.unwrap",
            "jax.numpy.unwrap",
        ),
    ),
)
